"""What a run did: its plots. It reads records; it measures nothing."""
