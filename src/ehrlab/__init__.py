"""ehrlab: published EHR methods and their rivals under one protocol."""
