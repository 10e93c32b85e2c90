"""What every dialect shares: the application, its door, its errors and its streams."""
