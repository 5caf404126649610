"""The index: which node holds which block. A hint, kept behind one small interface (`base.Index`)."""
