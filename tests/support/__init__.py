"""What several tests share: the server as a process, and the wire's strict checks."""
