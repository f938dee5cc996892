"""What an environment is to the training loops, and the games that are one: gymnax, gymnasium, ALE."""
