"""The command `regmamba`: one file per command; what is heavy is imported inside the commands."""
