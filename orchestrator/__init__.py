"""The conductor: sessions, turns, generations, the decision graph, and what runs a decision."""
