"""What was decided and spent, from the rows of the log; and what would have been decided from other inputs."""
