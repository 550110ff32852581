"""How good M is, what the dream promises beside what the road pays, and how the two rank controllers."""
