"""The command line that people and Tekton use: one file a command."""
