module trainer_plugin

go 1.24
