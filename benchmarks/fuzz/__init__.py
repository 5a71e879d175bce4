"""Fuzzing: damaged and hostile files for every reader of users' files."""
