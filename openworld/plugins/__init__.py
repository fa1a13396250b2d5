"""The method inside the tools of other frameworks."""
