"""The command line's groups, a file each."""
