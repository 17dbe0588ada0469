"""The options of every stage: dataclasses that import neither torch nor transformers, so that help is
fast. A text below a field is its help."""
