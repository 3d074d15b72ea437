"""How good a registration is: overlap, surface distance, folds, landmarks, and the report."""
