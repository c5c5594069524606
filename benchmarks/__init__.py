"""This project beside native code, in one run."""
