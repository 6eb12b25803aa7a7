"""Texts as points: models that say how near two texts are in meaning."""
