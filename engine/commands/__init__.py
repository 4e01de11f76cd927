"""What the command line does: one file a command; heavy libraries are imported when a command runs."""
