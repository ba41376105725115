"""What class each picture has: which values are classes, which files hold them, and which row means which picture."""
