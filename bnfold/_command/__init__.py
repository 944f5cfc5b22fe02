"""The command line: its commands, options, configuration and terminal."""
