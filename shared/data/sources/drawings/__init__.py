"""Sources that are drawn here from what installs as a package."""
