"""Whether a record may be taught from: leaks of the answer, overlap with evaluations, what else to know."""
