"""Fuzzing: files as nobody should write them, given to everything here that reads files of users."""
