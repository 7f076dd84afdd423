"""What a candidate is asked, what is true, and why it differs."""
