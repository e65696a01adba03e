"""What is computed from predictions and images."""
