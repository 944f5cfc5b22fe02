"""What a run found, as text, JSON, JUnit and for GitHub."""
