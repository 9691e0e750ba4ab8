"""What every room needs: files, tables, progress bars, checks of settings."""
