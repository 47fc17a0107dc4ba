"""Token ids in, token ids out: the reference sampler and the engine. No Ray, no tokenizer."""
