"""Whether a run goes wrong, told from the rows that it logs."""
