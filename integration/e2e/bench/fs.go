package main

func fsMain([]string) error { return nil }
func worker([]string)       {}
