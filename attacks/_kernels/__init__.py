"""Tensor operations of the attack engine, each made fast; the tests hold a plain version of every one."""
