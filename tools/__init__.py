"""What people run beside DVC: python -m tools.NAME."""
