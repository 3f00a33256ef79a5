"""Verification: hashes of every inner step, audits that compute rounds again, and a referee between two runs."""
