"""What agents may call: functions of the client, of this server, of servers of tools."""
