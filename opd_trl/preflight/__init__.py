"""Floor 3: look at a trainer that does not train. Rollouts of its student, and what they say before a step is made."""
