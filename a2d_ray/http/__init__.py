"""What every HTTP application here has: OpenAI's error objects, keys, limits on bodies."""
