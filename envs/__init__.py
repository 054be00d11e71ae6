"""Tasks and robots: Gymnasium environments, scripted experts, vectorisation."""
