"""The paper's claims on tiny models: a task, models trained from nothing, arms, and what came out of them."""
