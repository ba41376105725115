"""What a kill at any instant must not harm: atomic writes, manifests, locks; and where kept things lie."""
