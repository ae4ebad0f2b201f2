"""The models of the CPU-size world: how the shipped ones were trained, and students of chosen strength for studies."""
