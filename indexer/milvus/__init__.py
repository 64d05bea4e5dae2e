"""A snapshot on a Milvus server: sent there, kept up to date, answered from."""
