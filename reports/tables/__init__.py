"""Tables, before any format."""
