"""Text in, text out, in this process: `load`, `LanguageModel`, answers, streams, the chat."""
