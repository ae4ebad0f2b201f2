"""One record: read from what a source gives, checked, and made sound or refused."""
