"""The servers that commands talk to, each with its errors."""
