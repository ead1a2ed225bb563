"""Who may talk to the server: its certificates, its bearer tokens, and reading both again when they change."""
