"""What every dialect shares: the application, its listener, its errors and its streams."""
