"""Dense and sparse DQN: CartPole to a solved policy, then frames of Pong through the same agent."""
