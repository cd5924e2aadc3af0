"""Raw files to rows, rows to tensors, embeddings to feature stores; nothing here needs Ray."""
