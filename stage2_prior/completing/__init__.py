"""Pictures of which a part is kept, and a prior draws the rest."""
