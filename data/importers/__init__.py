"""Foreign formats of demonstrations, one a file; see `data.importers.importer` for what each is."""
