"""The instruments: engines, decoding, vision, speech, embeddings; the vocabulary at the ground."""
